"""What the service costs above handing an answer on: processor time, side by side with a bare relay in the same run.

`make bench` runs `__main__`. The fake model server (`fake`, with the bytes of `wire`) and the load client (`load`, with
the checks of `checks`) are processes of their own; `targets` starts what stands between them, `bare_relay` among it,
and `rig` measures one after the other, over and over. `cells` says what is measured and what is wanted, `report` makes
ratios of it, `plot` a picture. `documents` measures the core's planning alone.
"""
