"""What a run survives: kills, power failures, full disks, other drivers."""
