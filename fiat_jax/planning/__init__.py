"""What a run would need and how fast it could be, from programs compiled for machines that are not there."""
