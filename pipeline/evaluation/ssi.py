"""Structural similarity of drawings to the image their caption was written for (paper section 5.2: 50 drawings a caption).

Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, K1 0.01, K2 0.03, biased covariances, from scikit-image. `Choice:` colour
images are compared channel by channel and averaged; which implementation the paper used is not known.
"""

from __future__ import annotations

import numpy as np


def similarity(drawing: np.ndarray, image: np.ndarray) -> float:
    """Two images (C, H, W) in [0, 1], at least 11 pixels a side -> their structural similarity in [-1, 1]."""
    from skimage.metrics import structural_similarity

    if min(image.shape[1:]) < 11:
        raise ValueError(
            f"images of {image.shape[1]}x{image.shape[2]} are smaller than the 11x11 window of the similarity"
        )
    return float(
        structural_similarity(
            np.asarray(drawing, np.float64),
            np.asarray(image, np.float64),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
