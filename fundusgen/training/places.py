"""Whether a patient's gradient depends on their place in a batch, on this machine.

It must not: with one patient more, all after them move by a place, and their gradients would change
with nobody's data having changed. A last bit is enough, as weights can be made that turn it into
all of a gradient (`fundusgen.privacy.clipping`). Shapes are fixed for that, and the networks'
nonlinearities round alike everywhere (`fundusgen.models.activations`). Matrix products of a few
shapes, and what other devices do, remain: that is tried out before anything is spent, with one
public image at all places of a batch. Where the rows differ, smaller batches are tried, and in the
end patients are taken one at a time, which is slow and has one place only.

In which order a kernel adds up is decided by shapes, threads and place, and not by values. Values
only decide whether two orders round alike: of the narrow products of MKL, a try with random values
sees the difference in 35 to 90 of 100 cases (latent vectors of 5 to 21, 1 to 4 threads). So there
are many tries, and their values come from the operating system: whoever could foretell them would
choose a study whose tries all look well.

Axes: P patients, K views, S side, Z latent.
"""

import hashlib
import json
import logging
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import opacus
import torch
from torch import Tensor, nn

from fundusgen.code import code_hash
from fundusgen.data.patients import PatientDataset
from fundusgen.models.factory import build_model, private_names
from fundusgen.models.gan import GAN
from fundusgen.models.vae import VAE
from fundusgen.privacy.clipping import patient_norms, per_patient_gradients
from fundusgen.site import GradSampleMode
from fundusgen.storage import write_json
from fundusgen.study import Study
from fundusgen.training.patient_loss import GanLoss, PatientTask, PatientViews, VaeLoss

log = logging.getLogger("fundusgen.client")

# At 35 of 100 seen, 3e-8 of unlike places pass.
_TRIES = 40
# What the tries take in turn: standard deviation of what is added to the weights, and weight of a
# VAE's KL term. Beside that term, the last bits of the other's gradient can be lost.
_SPREADS_AND_KL = ((0.05, 0.0), (0.05, 1.0), (0.2, 0.0), (0.2, 1.0))
# Libraries that read from the environment which kernels to take.
_LIBRARIES = ("ONEDNN_", "DNNL_", "MKL_", "OMP_", "OPENBLAS_", "KMP_", "CUBLAS_", "TORCH_", "ATEN_")


def batch_that_holds(
    study: Study,
    wanted: int,
    *,
    mode: GradSampleMode,
    device: torch.device,
    kept: Path | None = None,
) -> int:
    """Find a size of physical batches in which no gradient depends on its place.

    Guarantee: depends on the study, this machine and its settings; no patient is looked at. A
        batch of more than one is returned only where gradients and their norms were equal to the
        bit at all of its places, for 40 random networks and images that nobody could foretell.
    Edge cases: what was kept and cannot be read is found out again, as is what was kept by other
        code or libraries; what cannot be kept is used all the same.

    Args:
        study: The study, with DP-SGD.
        wanted: The site's own `batch_patients`.
        mode: How gradients are taken.
        device: Where.
        kept: Folder in which the result is kept, so that not every round tries again.
    """
    path = None if kept is None else kept / f"places-{_digest(study, wanted, mode, device)}.json"
    if path is not None:
        try:
            known = json.loads(path.read_text())["batch_patients"]
            if type(known) is int and 1 <= known <= wanted:
                return known
        except (OSError, ValueError, KeyError, TypeError):
            pass
    found = next(size for size in _sizes(wanted) if equal_at_all_places(study, size, mode, device))
    if found < wanted:
        log.warning(
            "on this machine a patient's gradient depends on their place in a batch of %d; "
            "patients are taken %d at a time. Another number of `threads` or `batch_patients` in "
            "site.yaml may be faster",
            wanted, found,
        )  # fmt: skip
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"batch_patients": found})
        except OSError as error:
            log.warning("the size of batches could not be kept, and is found out again: %s", error)
    return found


def equal_at_all_places(
    study: Study, size: int, mode: GradSampleMode, device: torch.device
) -> bool:
    """Take the gradient of one image at all places of a batch, and compare the rows to the bit.

    Args:
        study: The study, with DP-SGD; its model gets random weights, other ones at each try.
        size: Of the batch.
        mode: How gradients are taken.
        device: Where.
    """
    if size == 1:
        return True
    model = build_model(study)
    if isinstance(model, VAE):
        # Those of the study may be so large or small that nothing is left to be seen.
        model.pixel_std = model.beta = 1.0
    model.to(device)
    private = {n: model.get_parameter(n) for n in private_names(model, study.model.private)}
    if not private:
        # Which `prepare_round` refuses, and says why.
        return True
    task = _task(study, model, private, mode, device)
    first = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number in range(_TRIES):
            torch.manual_seed(secrets.randbits(63))
            spread, kl_weight = _SPREADS_AND_KL[number % len(_SPREADS_AND_KL)]
            if isinstance(task, VaeLoss):
                task.kl_weight = kl_weight
            with torch.no_grad():
                for parameter, before in zip(model.parameters(), first, strict=True):
                    # What begins as zero would hide what it is multiplied with.
                    parameter.copy_(before + spread * torch.randn_like(before))
            batch = tuple(
                part.expand(size, *part.shape[1:]).clone().to(device)
                for part in _patient(study, model)
            )
            rows, losses_P = per_patient_gradients(task.loss(), private, batch, fixed_size=size)
            found = [*rows.values(), patient_norms(list(rows.values())), losses_P]
            if not all(torch.equal(part, part[:1].expand_as(part)) for part in found):
                return False
    return True


def _sizes(wanted: int) -> list[int]:
    """The wanted size and then powers of two below it: those have no odd ends."""
    return [
        wanted,
        *(2**power for power in range(wanted.bit_length(), -1, -1) if 2**power < wanted),
    ]


def _task(
    study: Study,
    model: nn.Module,
    private: Mapping[str, nn.Parameter],
    mode: GradSampleMode,
    device: torch.device,
) -> PatientTask:
    nobody = PatientDataset(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), [])
    views = PatientViews(nobody, study.dpsgd.views_per_patient, device)
    if isinstance(model, GAN):
        return GanLoss(model, private, views, drawn=1, mode=mode)
    if isinstance(model, VAE):
        return VaeLoss(model, private, views, kl_weight=1.0, mode=mode)
    raise TypeError("a study has a VAE or a GAN")


def _patient(study: Study, model: nn.Module) -> tuple[Tensor, ...]:
    """One patient of noise, as a task loads them: tensors (1, K, ...)."""
    views, side = study.dpsgd.views_per_patient, study.image_size
    images = torch.rand(1, views, 3, side, side) * 2 - 1
    conditions = torch.randint(len(study.conditions), (1, views))
    if isinstance(model, VAE):
        return images, conditions, torch.randn(1, views, model.latent)
    return images, conditions


def _digest(study: Study, wanted: int, mode: GradSampleMode, device: torch.device) -> str:
    """Name what decides how kernels share out their work: code, libraries, machine, settings."""
    machine = [
        code_hash(), torch.__version__, opacus.__version__, torch.__config__.show(),
        torch.get_num_threads(), str(device), torch.backends.cpu.get_cpu_capability(), _processor(),
        sorted(item for item in os.environ.items() if item[0].startswith(_LIBRARIES)),
    ]  # fmt: skip
    if device.type == "cuda":
        machine += [torch.cuda.get_device_name(device), torch.backends.cudnn.version()]  # type: ignore[no-untyped-call]
    asked = [study.model.model_dump(mode="json"), study.image_size, len(study.conditions),
             study.dpsgd.views_per_patient, wanted, mode]  # fmt: skip
    return hashlib.sha256(json.dumps([machine, asked]).encode()).hexdigest()[:20]


def _processor() -> str:
    """What a processor calls itself; libraries choose kernels by that."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
