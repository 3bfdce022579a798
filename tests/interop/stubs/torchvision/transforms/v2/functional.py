"""Named by LeRobot, not used here."""
