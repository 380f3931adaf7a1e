"""Telescopes and bands as frozen records, one module each: pixel scale, PSF, zero point, sky, exposure, read noise."""

from darklens.registry import Registry
from darklens.simulate.instruments import euclid, hst, rubin
from darklens.simulate.instruments.record import Instrument

INSTRUMENTS: Registry[Instrument] = Registry("instrument")
for _record in (hst.WFC3_F160W, euclid.VIS, rubin.LSST_I):
    INSTRUMENTS.add(_record.name, _record)
