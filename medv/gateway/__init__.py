"""The repository server: who may fetch what, and the bytes themselves or a word to the nginx in front.

Read it from ``application`` down. What decides is pure and knows no request (``access``, ``signedurls``, ``limits``);
what talks to the world is thin.
"""
