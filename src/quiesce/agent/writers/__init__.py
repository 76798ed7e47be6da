"""Writers: one module an application. `base` has what they share, `registry` finds them in this machine."""
