"""Other people's Gymnasium environments, behind the interface of this simulator."""
