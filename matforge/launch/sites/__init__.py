"""Site profiles: one small file each, see :mod:`matforge.launch.site`."""
