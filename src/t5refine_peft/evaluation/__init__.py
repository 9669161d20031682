"""How well are terms restored?"""
