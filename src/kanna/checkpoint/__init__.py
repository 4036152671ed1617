"""Directories of models: read and checked, written whole, recorded (`lineage`), loaded (`quantizer`)."""
