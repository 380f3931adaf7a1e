"""From a population and a seed to images: draw parameters, ray-trace, observe, store."""
