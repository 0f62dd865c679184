"""The Lightning module that trains on what a selector keeps."""
