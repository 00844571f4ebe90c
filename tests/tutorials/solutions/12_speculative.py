import numpy as np


def accept_one(p, q, x, u, u_next):
    if u * q[x] < p[x]:
        return x
    passed = np.cumsum(np.maximum(p - q, 0))
    return int(np.argmax(passed > u_next * passed[-1]))


def simpler_rule(p, q):
    bold = p < q
    return np.where(bold, 0, q) + q[bold].sum() * p
