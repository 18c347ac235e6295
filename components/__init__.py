"""The pluggable pieces of mmframe, one idea a file: backbones, patch embedders, routers, freezing policies, objectives."""
