"""Random numbers that protect patients: Gaussian noise and uniform words.

Every mechanism of a site draws from here and from nowhere else: DP-SGD its Poisson samples and
its noise, votes their noise. Two sources share one interface, `NoiseSource`:

- `SecureNoise`, the default: the keystream of AES-256-CTR (package `cryptography`) under a key
  that the operating system hands out afresh for every single call.
- `FastNoise`: NumPy's generator, for simulations. The ledger records `kind`.

Why noise is added by `add_gaussian_noise` and not by `+`: a sum of two floating-point numbers
keeps low bits of both, and those bits tell noiseless values apart. Mironov 2012 showed it for
Laplace noise; Jin et al. 2022 (arXiv 2112.05307) for Gaussian noise and DP-SGD. Holohan and
Braghin 2021 (arXiv 2107.10138) answer by adding up several draws, so that nobody can enumerate
the uniforms behind one output. Haney et al. 2022 (arXiv 2207.13793) showed that this is not
enough, as the addition itself leaks whatever made the noise. So two measures here:

1. every output is the sum of two Box-Muller draws that share no uniform: 252 random bits;
2. value and noise are both rounded to one public lattice, whose spacing depends on the standard
   deviation alone, and are added there without any rounding. The result is a lattice point
   whatever the data: no low bits are left to read.

As the value sits on the lattice, `value + round(gaussian)` equals `round(value + gaussian)`: a
post-processing of the Gaussian mechanism on the rounded value. Rounding moves two neighbours
apart by at most `rounding_sensitivity`, which callers take off their clipping bound.

What remains is the error of float64's log, sqrt and cos, about 2**-49 standard deviations
against a spacing of 2**-21 or more. It is small, not zero: this is no exact sampler.
"""

import math
import os
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from fundusgen.errors import PrivacyError

# A standard deviation holds between 2**20 and 2**21 lattice steps: fine enough that rounding
# costs 0.05% of a clipping bound at 300,000 parameters and a noise multiplier of 1, coarse
# enough that float64's errors in the noise stay far below one step.
LATTICE_BITS = 20
# Beyond these, squares and steps leave the range of normal floating-point numbers.
SMALLEST_DEVIATION, LARGEST_DEVIATION = 1e-30, 1e30
# Sums of lattice points below this many steps are exact in float64, with a bit to spare.
_LARGEST_STEPS = 2.0**51
# Outputs made at a time: the buffers stay in the processor's cache.
_BLOCK = 1 << 16
_WORDS_AN_OUTPUT = 4
_ZEROS = bytes(8 * _WORDS_AN_OUTPUT * _BLOCK)
_LOW_63_BITS = (1 << 63) - 1


class NoiseSource(Protocol):
    """Where a mechanism's randomness comes from.

    Guarantee: draws are independent of the data, of each other and of every earlier process.
    Edge cases: a source that cannot deliver raises; it never returns less or repeats itself.
    """

    @property
    def kind(self) -> str:
        """What the ledger and receipts record: "secure" or "fast"."""
        ...

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
        """Draw independent float64 Gaussian noise, rounded to `lattice_spacing`, on the CPU."""
        ...

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        """Draw independent words, uniform over 0 .. 2**64 - 1."""
        ...


class SecureNoise:
    """Noise from a cryptographic generator, keyed by the operating system at each call.

    It holds no state, so that a fork, a copy, a pickle or a second thread cannot repeat a
    stream.

    Guarantee: who does not know the key of a call, 256 bits that exist only during it, cannot
        tell its uniform words from independent ones better than AES-256 can be broken. The
        standard deviation is public. The running time depends on the shape alone.
    Edge cases: no entropy from the operating system raises; a virtual machine that is
        snapshotted during a call and resumed twice repeats that call.
    """

    kind: ClassVar[str] = "secure"

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
        """Draw independent Gaussian noise on the lattice.

        Guarantee: each entry is round(N(0, standard_deviation**2)) to the lattice, of 252
            random bits, up to float64's error in log, sqrt and cos. A draw's radius ends at 9.4
            standard deviations, beyond which 2**-64 of the distribution lies.
        Edge cases: an empty shape gives an empty tensor; a standard deviation that is not
            finite, not positive or out of range raises.

        Args:
            shape: Shape of the result, each length at least 0.
            standard_deviation: Between 1e-30 and 1e30, in the unit of the values to hide.

        Returns:
            float64 tensor of the shape, multiples of `lattice_spacing(standard_deviation)`.

        Raises:
            PrivacyError: The standard deviation is out of range.
        """
        spacing = lattice_spacing(standard_deviation)
        noise = torch.empty(math.prod(shape), dtype=torch.float64)
        keystream = _Keystream()
        for start in range(0, len(noise), _BLOCK):
            block = noise[start : start + _BLOCK]
            _box_muller(keystream.words(_WORDS_AN_OUTPUT * len(block)), block)
        return noise.mul_(standard_deviation / spacing).round_().mul_(spacing).view(tuple(shape))

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        """Draw independent uniform words.

        Guarantee: words are uniform over 0 .. 2**64 - 1 and independent.
        Edge cases: a count of 0 gives an empty array; a negative count raises.

        Args:
            count: How many words.

        Returns:
            uint64 array of that length.

        Raises:
            PrivacyError: The count is negative.
        """
        _refuse_negative(count)
        keystream, words = _Keystream(), np.empty(count, dtype=np.uint64)
        for start in range(0, count, _BLOCK):
            block = words[start : start + _BLOCK]
            block[:] = keystream.words(len(block)).numpy().view(np.uint64)
        return words


class FastNoise:
    """Noise from NumPy's PCG64, seeded by the operating system at each call: simulations only.

    Guarantee: the distribution of `SecureNoise`, but no protection from an adversary who
        reconstructs the generator's state from what was released. A policy refuses it outside
        simulation.
    Edge cases: as `SecureNoise`.
    """

    kind: ClassVar[str] = "fast"

    def gaussian(self, shape: Sequence[int], standard_deviation: float) -> Tensor:
        """Draw independent Gaussian noise on the lattice; see `SecureNoise.gaussian`.

        Guarantee: the right distribution up to float64; predictable in principle.
        Edge cases: as `SecureNoise.gaussian`.

        Args:
            shape: Shape of the result, each length at least 0.
            standard_deviation: Between 1e-30 and 1e30, in the unit of the values to hide.

        Returns:
            float64 tensor of the shape, multiples of `lattice_spacing(standard_deviation)`.

        Raises:
            PrivacyError: The standard deviation is out of range.
        """
        spacing = lattice_spacing(standard_deviation)
        noise = torch.from_numpy(np.asarray(np.random.default_rng().standard_normal(tuple(shape))))
        return noise.mul_(standard_deviation / spacing).round_().mul_(spacing)

    def uniform_uint64(self, count: int) -> NDArray[np.uint64]:
        """Draw independent uniform words; see `SecureNoise.uniform_uint64`.

        Guarantee: uniform and independent; predictable in principle.
        Edge cases: as `SecureNoise.uniform_uint64`.

        Args:
            count: How many words.

        Returns:
            uint64 array of that length.

        Raises:
            PrivacyError: The count is negative.
        """
        _refuse_negative(count)
        return np.random.default_rng().integers(0, 2**64, count, dtype=np.uint64)


def add_gaussian_noise(values: Tensor, standard_deviation: float, noise: NoiseSource) -> Tensor:
    """Round values to the noise's lattice and add Gaussian noise there, exactly.

    Guarantee: for values whose L2 norm differs by at most s between neighbouring data sets, this
        is the Gaussian mechanism with sensitivity s + `rounding_sensitivity` and the given
        standard deviation, followed by a rounding that depends on no data. Casts and arithmetic
        on the result are post-processing.
    Edge cases: empty values give an empty result; a value that is not finite, or larger than
        about 1e9 standard deviations, raises before noise is drawn.

    Args:
        values: Real tensor of any shape and device.
        standard_deviation: Of the noise, in the values' unit; public.
        noise: Where the noise comes from.

    Returns:
        float64 tensor of the same shape and device, multiples of the lattice spacing.

    Raises:
        PrivacyError: Values cannot be hidden, or the noise has another shape.
    """
    spacing = lattice_spacing(standard_deviation)
    steps = (values.detach().to(torch.float64) / spacing).round_()
    # NaN fails the comparison too.
    if steps.numel() and not bool((steps.abs() < _LARGEST_STEPS).all()):
        raise PrivacyError(
            "a value to be released is not finite or too large for its noise",
            expected=f"values below {_LARGEST_STEPS * spacing:.3g}",
            remedy="Release nothing of this step; look for a diverging loss",
        )
    drawn = noise.gaussian(tuple(values.shape), standard_deviation)
    if drawn.shape != values.shape or drawn.dtype != torch.float64:
        raise PrivacyError(
            f"the noise source gave {tuple(drawn.shape)} of {drawn.dtype}",
            expected=f"{tuple(values.shape)} of torch.float64",
            remedy="Use SecureNoise or FastNoise",
        )
    return steps.mul_(spacing).add_(drawn.to(values.device))


def lattice_spacing(standard_deviation: float) -> float:
    """Give the distance of the points that noise of this size is rounded to.

    Guarantee: a power of two that depends on the standard deviation alone, between 2**-21 and
        2**-20 of it.
    Edge cases: a standard deviation that is not finite, not positive or out of range raises.

    Args:
        standard_deviation: Between 1e-30 and 1e30.

    Returns:
        The spacing, in the unit of the standard deviation.

    Raises:
        PrivacyError: The standard deviation is out of range.
    """
    # NaN fails the comparison too.
    if not SMALLEST_DEVIATION <= standard_deviation <= LARGEST_DEVIATION:
        raise PrivacyError(
            f"a standard deviation of {standard_deviation} was asked of the noise",
            expected=f"a number from {SMALLEST_DEVIATION} to {LARGEST_DEVIATION}",
            remedy="Set noise_multiplier and max_grad_norm to positive numbers",
        )
    _, exponent = math.frexp(standard_deviation)
    return math.ldexp(1.0, exponent - 1 - LATTICE_BITS)


def rounding_sensitivity(count: int, standard_deviation: float) -> float:
    """Bound what rounding to the lattice adds to the L2 distance of neighbours.

    Guarantee: for vectors x and y of that many entries, the rounded vectors are at most this
        much further apart than x and y: each entry moves by half a step at most, in both.
    Edge cases: a count of 0 gives 0; a standard deviation out of range raises.

    Args:
        count: Number of entries, at least 0.
        standard_deviation: Of the noise, in the values' unit.

    Returns:
        The bound, in the values' unit.

    Raises:
        PrivacyError: The count is negative or the standard deviation out of range.
    """
    _refuse_negative(count)
    return math.sqrt(count) * lattice_spacing(standard_deviation)


class _Keystream:
    """AES-256-CTR under a fresh key; never used for a second call, never stored."""

    def __init__(self) -> None:
        # A key is used once, so that the counter may start at zero.
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def words(self, count: int) -> Tensor:
        """Give the next words as int64, at most `_WORDS_AN_OUTPUT * _BLOCK` of them."""
        buffer = bytearray(8 * count)
        written = self._encryptor.update_into(memoryview(_ZEROS)[: 8 * count], buffer)
        if written != 8 * count:
            raise PrivacyError(
                f"the cipher gave {written} bytes of keystream",
                expected=f"{8 * count} bytes",
                remedy="Reinstall the package cryptography",
            )
        return torch.frombuffer(buffer, dtype=torch.int64)


def _box_muller(words: Tensor, out: Tensor) -> None:
    """Turn four words an output into a standard Gaussian: two draws that share no uniform."""
    words = words.view(_WORDS_AN_OUTPUT, len(out)).bitwise_and_(_LOW_63_BITS)
    # 63 bits and not 53: float64 is finest near zero, where the logarithm makes the tails.
    uniform = words[:2].to(torch.float64).add_(0.5).mul_(2.0**-63)
    angle = words[2:].to(torch.float64).mul_(2 * math.pi * 2.0**-63)
    # Half of Box-Muller's variance in each of the two draws, so that their sum has variance 1.
    radius = uniform.log_().neg_().sqrt_()
    torch.sum(radius.mul_(angle.cos_()), dim=0, out=out)


def _refuse_negative(count: int) -> None:
    if count < 0:
        raise PrivacyError(
            f"{count} random numbers were asked for",
            expected="a count of 0 or more",
            remedy="Check the number of patients and parameters",
        )
