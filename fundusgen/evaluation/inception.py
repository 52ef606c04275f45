"""InceptionV3 as an extractor: the network of the original "FID" (Heusel et al. 2017).

For the first step of evaluation, beside the extractors that need nothing; its weights are had
elsewhere.

N images, S side in pixels, D features.
"""

import hashlib
import importlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fundusgen.errors import ModelError
from fundusgen.evaluation.encoders import checked, weights_content
from fundusgen.evaluation.features import check_images, resized_batches, stacked

# torch-fidelity's conversion of the original weights; the file is named by its digest's start.
_FILE = "weights-inception-2015-12-05-6726825d.pth"
_DIGEST = "6726825d"
_DIMENSIONS = 2048


class InceptionFeatures:
    """InceptionV3 as in most papers' FID: 2048 features of its last average pooling.

    The network of torch-fidelity, through torchmetrics, with the resizing of the original. Figures
    are comparable with published ones where the number of images is too.

    Args:
        weights: torch-fidelity's file of weights; where it keeps what it downloads, if None.

    Raises:
        ModelError: The package or the weights are not there, or it is another file. Nothing is
            downloaded, and since torch-fidelity unpickles, only the one known file is opened.
    """

    name = "inception"
    version = "torch-fidelity inception-v3-compat 2048, 1"
    dimensions = _DIMENSIONS

    def __init__(self, weights: Path | None = None) -> None:
        """Load the weights."""
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / _FILE
        for package in ("torchvision", "torch_fidelity"):
            try:
                importlib.import_module(package)
            # A torchvision that was built for another torch fails with a RuntimeError.
            except (ImportError, RuntimeError) as error:
                raise ModelError(
                    f"the package {package} is not installed, or not for this torch",
                    expected="torch-fidelity, which has the Inception network of FID",
                    remedy="Run `pip install torch-fidelity`, with a torchvision that fits torch",
                ) from error
        content = weights_content(path, f"Download {_FILE} of torch-fidelity's release v0.2.0")
        self.digest = hashlib.sha256(content).hexdigest()
        if not self.digest.startswith(_DIGEST):
            raise ModelError(
                f"weights of Inception with the digest {self.digest[:8]}",
                expected=f"{_FILE}, whose digest starts with {_DIGEST}",
                remedy="Download it again; another network is read by `encoder_from`",
            )
        from torchmetrics.image.fid import NoTrainInceptionV3

        self._network = NoTrainInceptionV3(
            "inception-v3-compat", [str(_DIMENSIONS)], str(path), antialias=False
        )

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`."""
        check_images(images_NSSC)
        with torch.inference_mode():
            # Batches at their own size: the network resizes as the original did.
            return stacked(
                (
                    checked(self._network(batch.to(torch.uint8)), len(batch), self.name)
                    for batch in resized_batches(images_NSSC, images_NSSC.shape[1])
                ),
                _DIMENSIONS,
            )
