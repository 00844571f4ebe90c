"""What the makers say of their devices: the figures that every bound here rests on.

Nothing in this table was measured. Sources: TPUs, docs.cloud.google.com/tpu/docs, pages v5e, v5p and v6e; H100 and
A100 (both SXM, 80 GB), NVIDIA's data sheets and the CUDA programming guide's table of compute capabilities; B200,
the data sheet of DGX B200 divided by its eight devices. Speeds are those of dense products: data sheets of NVIDIA
also give twice as much, for matrices that are half zeros.
"""

from dataclasses import dataclass

from ..errors import UserError

GiB = 1 << 30  # makers write GB of memory and mean this


@dataclass(frozen=True)
class Chip:
    """What the compiler must know of an NVIDIA device that is not there, beside what `Device` says.

    sms      streaming multiprocessors; fp32 is the float32 units of each
    shared   bytes of shared memory an SM has, and that one block may ask for
    l2       bytes of the cache that all SMs share
    ghz      boost clock
    """

    capability: tuple[int, int]
    sms: int
    fp32: int
    shared: tuple[int, int]
    l2: int
    ghz: float


@dataclass(frozen=True)
class Device:
    """One kind of device.

    platform   tpu or cuda
    memory     bytes
    bandwidth  bytes a second between that memory and the processor
    peak       operations a second of matrix products, by the bytes that each factor has: 1 (int8, fp8), 2
               (bfloat16) and 4 (float32 as JAX multiplies it unless told otherwise: GPUs in TF32, TPUs in bfloat16)
    links      bytes a second to other devices, both directions together
    slices     numbers of chips that are rented together, with their arrangement (TPU)
    """

    name: str
    platform: str
    memory: int
    bandwidth: float
    peak: dict[int, float]
    links: float
    slices: dict[int, str] | None = None
    chip: Chip | None = None


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
DEEP = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}

DEVICES = {
    device.name: device
    for device in (
        Device("tpu-v5e", "tpu", 16 * GiB, 819e9, {1: 393e12, 2: 197e12, 4: 197e12}, 400e9, FLAT),
        Device("tpu-v5p", "tpu", 95 * GiB, 2765e9, {1: 918e12, 2: 459e12, 4: 459e12}, 1200e9, DEEP),
        Device("tpu-v6e", "tpu", 32 * GiB, 1640e9, {1: 1836e12, 2: 918e12, 4: 918e12}, 800e9, FLAT),
        Device(
            *("h100", "cuda", 80 * GiB, 3350e9, {1: 1979e12, 2: 989e12, 4: 494e12}, 900e9),
            chip=Chip((9, 0), 132, 128, (233472, 232448), 50 << 20, 1.98),
        ),
        Device(
            *("a100", "cuda", 80 * GiB, 2039e9, {1: 624e12, 2: 312e12, 4: 156e12}, 600e9),
            chip=Chip((8, 0), 108, 64, (167936, 166912), 40 << 20, 1.41),
        ),
        Device(
            *("b200", "cuda", 180 * GiB, 8000e9, {1: 4500e12, 2: 2250e12, 4: 1125e12}, 1800e9),
            chip=Chip((10, 0), 148, 128, (233472, 232448), 126 << 20, 1.965),
        ),
    )
}


def device_named(name: str) -> Device:
    """The device of that name; UserError lists what there is."""
    if name not in DEVICES:
        raise UserError(f"target is {name!r}, expected one of {', '.join(DEVICES)}")
    return DEVICES[name]
