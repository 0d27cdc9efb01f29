"""Training from nothing on procedural scenes: ``python -m tttlrm.training stage=tiny-object output=runs/tiny-object``.

A run is a list of phases (image size, numbers of views, learning rate). Its data are a pure function of the seed and
the step, so that a run that was interrupted goes on as if it had not been.
"""
