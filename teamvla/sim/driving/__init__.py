"""Driving: a road with traffic, an ego vehicle with cameras, LiDAR, radar and IMU."""
