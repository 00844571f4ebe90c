import numpy as np


def ring_all_reduce(parts, send):
    """the shape of what is sent in a step is [2, 4], expected [2, 2]"""
    total, travelling = parts.copy(), parts
    for _ in range(len(parts) - 1):
        travelling = send(travelling)  # everything at once: k / 2 times the traffic
        total += travelling
    return total


def shard_shape(shape, spec, mesh):
    """shard_shape((16, 24), (('data', 'model'), None), mesh) is (4, 24), expected (2, 24)"""
    last = [one[-1] if isinstance(one, tuple) else one for one in spec]
    return tuple(int(size // np.array(mesh.get(name, 1))) for size, name in zip(shape, last, strict=True))


def received_bytes(d, layers, k):
    """the bytes of Llama 3 70B on eight devices is 2.2938e+06, expected 4.5875e+06"""
    return layers * (2 * d) * 2 * (k - 1) / k  # one all-reduce a layer
