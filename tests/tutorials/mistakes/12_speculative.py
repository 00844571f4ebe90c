import numpy as np


def accept_one(p, q, x, u, u_next):
    """the token is"""
    if u * q[x] < p[x]:
        return x
    passed = np.cumsum(p)  # from p, not from what p has more of
    return int(np.argmax(passed > u_next * passed[-1]))


def simpler_rule(p, q):
    """the outcome for p = ["""
    return p
