"""What the stages share: plain functions and small classes from images to scores."""
