"""What a plan of a training over many GPUs comes with: files for other trainers, schedules by tokens, the recipe."""
