"""Caption Canvas: from captioned images to models that draw images from captions."""

__version__ = "0.1.0"
