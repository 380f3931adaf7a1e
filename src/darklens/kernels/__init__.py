"""C++ kernels for fits of the smooth lens and for the splat, built at first use."""
