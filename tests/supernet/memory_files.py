"""Storage for checkpoints that lives in memory, and can be made to fail."""

import json

from supernet.errors import InvalidInput, StorageFailed


class MemoryFiles:
    """What `supernet.checkpoint.Files` asks for; writing the names in `refused` fails."""

    def __init__(self):
        self.data = {}
        self.refused = ()

    def names(self, folder):
        inside = f"{folder}/"
        found = (name.removeprefix(inside) for name in self.data if name.startswith(inside))
        return sorted({name.split("/")[0] for name in found})

    def exists(self, name):
        return any(f"{found}/".startswith(f"{name}/") for found in self.data)

    def read_bytes(self, name):
        if name not in self.data:
            raise InvalidInput(f"cannot read {name}")
        return self.data[name]

    def write_bytes(self, name, data):
        if any(part in name for part in self.refused):
            raise StorageFailed(f"cannot write {name}")
        self.data[name] = data

    def read_json(self, name):
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise InvalidInput(str(error)) from None

    def write_json(self, name, value):
        self.write_bytes(name, json.dumps(value).encode())

    def delete(self, name):
        self.data = {k: v for k, v in self.data.items() if not f"{k}/".startswith(f"{name}/")}
