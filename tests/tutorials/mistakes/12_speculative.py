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


def tokens_per_pass(a, m):
    """tokens_per_pass(0.8, 4) is 4.2, expected 3.3616"""
    return 1 + a * m  # as if a guess could be kept behind one that was not
