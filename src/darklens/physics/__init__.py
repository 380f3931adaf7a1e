"""The laws of lensing as pure functions of tensors, batched, differentiable, with units.

Angles are in arcsec. Coordinates and parameters broadcast against each other, so a batch of B lenses on an
(H, W) grid passes parameters of shape (B, 1, 1). Nothing here reads files, draws parameters or learns.
"""
