"""Publishing to several leaf sites: the nearest healthy one is used, and left within two seconds when it breaks.

>>> from streams.routing.publisher import RoutedPublisher
>>> with RoutedPublisher(["gate=10.0.0.5:9092", "hall=10.0.0.6:9092"]) as publisher:  # doctest: +SKIP
...     camera = publisher.source("camera-1")
...     camera.begin(fps=15)
...     for jpeg in pictures:
...         camera.publish(jpeg)  # never waits; the record's id stays the same whatever site takes it
...     print(publisher.site, publisher.router.states(), publisher.router.moves)

`streams.routing.publisher` is the library; `router` decides, with `choice` (pure) on what `probe` measures and `health` (pure) keeps; `way`
holds one site's Kafka clients; `metrics` shows it.
"""
