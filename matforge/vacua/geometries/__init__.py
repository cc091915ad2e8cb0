"""The topological data shipped with MatForge, one JSON file a geometry."""
