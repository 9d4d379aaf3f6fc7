"""Which objective learns best from how much noise: objectives x noise x level x seed.

``parts -> runs -> rows -> statistics -> tables, figures``
"""
