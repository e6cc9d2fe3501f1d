"""From measured units to rows, tables and charts; every figure is a pure function of the units."""
