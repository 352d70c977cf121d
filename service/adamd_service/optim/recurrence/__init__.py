"""An optimizer's update as a straight-line text, and what joins and specialises such texts."""
