"""DFlash networks on disk."""
