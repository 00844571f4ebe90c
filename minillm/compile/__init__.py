"""Compiling a model for devices that are not there, and what the data sheets say that it could do on them.

`topology.py` has the devices, `cost.py` counts what a program must do, `plan.py` puts the two together.
"""
