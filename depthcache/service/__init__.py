"""The depth-cache service: one URL from which a team reads depth maps and to which it adds them.

`server.serve` runs it; `app.build_service` puts it together:

    gate.py       every request: who asks, may they, how much and how fast; log and metrics
    objects.py    plain GET with Range on every object of a sealed segment
    app.py        the JSON endpoints: catalogue, lookup, single maps, uploads, pins, health
    uploads.py    staged, resumable, validated, atomically published segments
    lifecycle.py  pins, size cap with least-recently-used eviction, leftovers
    catalogue.py  what the root holds, and where each image's map is
"""
