"""The generation cache, written plainly: two insertion-ordered lists of pairs."""


class SlowCache:
    def __init__(self, capacity):
        self.half = capacity // 2
        self.young = []
        self.old = []

    def get(self, key):
        for name, value in self.young:
            if name == key:
                return value
        for name, value in self.old:
            if name == key:
                self.put(key, value)
                return value
        return None

    def put(self, key, value):
        names = [name for name, _ in self.young]
        if key in names:
            self.young[names.index(key)] = (key, value)
            return
        if len(self.young) >= self.half:
            self.old, self.young = self.young, []
        self.young.append((key, value))

    def drop(self, key):
        self.young = [pair for pair in self.young if pair[0] != key]
        self.old = [pair for pair in self.old if pair[0] != key]
