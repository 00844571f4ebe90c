"""What the techniques everybody quotes are worth here, from the claim to the cost of a verified success.

    claims      what is claimed of each, and where
    roof        what the machine allows at best
    contests    what no other experiment has measured, measured
    rows        a function a technique: its row, and why it differs from the claim
    table       the rows for people

The command is `python -m bench.techniques`.
"""
