"""What a run is, without knowing who executes it: graph, journal, store, status, arbitration."""
