"""Who starts agents and jobs; the contract is :mod:`matforge.executors.protocol`."""
