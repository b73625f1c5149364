"""The commands that sample and edit images with a trained model."""
