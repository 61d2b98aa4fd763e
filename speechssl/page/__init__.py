"""One self-contained HTML page about runs: curves, scores with sound, masks, embeddings, probes.

Nothing is fetched when it is opened: pictures, sound, style and script lie in the file.
"""
