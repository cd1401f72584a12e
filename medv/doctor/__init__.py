"""The doctor: asks a repository's server as a client would, and says what is wrong and how to put it right.

``examination`` and ``content`` ask, in the course of an ``interview``; ``answers``, ``ranges``, ``caching`` and
``wire`` decide, purely, from what was seen; ``ailments`` holds what is known of each fault.
"""
