"""What every suite shares: the gate, the clock, the memory, the files, the tables, the figures.

``work -> gate -> clock, memory -> results -> tables, figures``
"""
