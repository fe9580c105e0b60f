"""From video files to clips."""
