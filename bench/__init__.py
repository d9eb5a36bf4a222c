"""Speed and memory beside other libraries: `make bench`, or `make bench BENCH="maml kmeans"` for some of it.

Read in this order: `driver` (how is measured), `measurements` (what is measured), one file for each kind of side, and
`table` (what becomes of it). Every side of a measurement runs in a process of its own.
"""
