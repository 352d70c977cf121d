"""What is computed of a session's steps besides the update: progress, stalls, rules for stopping."""
