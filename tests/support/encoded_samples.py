"""Values as real programs wrote them, for the tests of decoding.

Java 17: `new ObjectOutputStream(file).writeObject(…)`. PHP 8.2: `serialize(…)`, and a session file. Both were written
by the programs themselves, once, because the suite does not install them.
"""

import base64

JAVA_OBJECT = base64.b64decode(
    "rO0ABXNyAAhHZW4kQ2FydAAAAAAAAAAHAgAOQgABYkkABWNvdW50QwAFZ3JhZGVaAARvcGVuRAAFcHJpY2VKAAR3aGVuTAAFY29s"
    "b3J0AAtMR2VuJENvbG9yO0wABGRhdGV0ABBMamF2YS91dGlsL0RhdGU7TAAFaXRlbXN0ABBMamF2YS91dGlsL0xpc3Q7TAADbWFw"
    "dAAPTGphdmEvdXRpbC9NYXA7TAAFb3duZXJ0ABJMamF2YS9sYW5nL1N0cmluZztbAANyYXd0AAJbQkwABHNlbGZ0AApMR2VuJENh"
    "cnQ7WwAEdGFnc3QAE1tMamF2YS9sYW5nL1N0cmluZzt4cP8AAAADAEEBQCMAAAAAAAAAAAGatpfoAH5yAAlHZW4kQ29sb3IAAAAA"
    "AAAAABIAAHhyAA5qYXZhLmxhbmcuRW51bQAAAAAAAAAAEgAAeHB0AANSRURzcgAOamF2YS51dGlsLkRhdGVoaoEBS1l0GQMAAHhw"
    "dwgAAAGatpfoAHhzcgATamF2YS51dGlsLkFycmF5TGlzdHiB0h2Zx2GdAwABSQAEc2l6ZXhwAAAAAncEAAAAAnQAA211Z3QABnBv"
    "c3RlcnhzcgARamF2YS51dGlsLkhhc2hNYXAFB9rBwxZg0QMAAkYACmxvYWRGYWN0b3JJAAl0aHJlc2hvbGR4cD9AAAAAAAABdwgA"
    "AAACAAAAAXQAAWtzcgARamF2YS5sYW5nLkludGVnZXIS4qCk94GHOAIAAUkABXZhbHVleHIAEGphdmEubGFuZy5OdW1iZXKGrJUd"
    "C5TgiwIAAHhwAAAAAXh0AANhZGF1cgACW0Ks8xf4BghU4AIAAHhwAAAAAwECA3EAfgAJdXIAE1tMamF2YS5sYW5nLlN0cmluZzut"
    "0lbn6R17RwIAAHhwAAAAA3QAAXh0AAF5cA=="
)
"""An object with fields of most types, an enum, a list, a map, an array and a reference to itself."""

JAVA_EXCEPTION = base64.b64decode(
    "rO0ABXNyAB9qYXZhLmxhbmcuSWxsZWdhbFN0YXRlRXhjZXB0aW9u5ldV5ppG8kgCAAB4cgAaamF2YS5sYW5nLlJ1bnRpbWVFeGNl"
    "cHRpb26eXwZHCjSD5QIAAHhyABNqYXZhLmxhbmcuRXhjZXB0aW9u0P0fPho7HMQCAAB4cgATamF2YS5sYW5nLlRocm93YWJsZdXG"
    "NSc5d7jLAwAETAAFY2F1c2V0ABVMamF2YS9sYW5nL1Rocm93YWJsZTtMAA1kZXRhaWxNZXNzYWdldAASTGphdmEvbGFuZy9TdHJp"
    "bmc7WwAKc3RhY2tUcmFjZXQAHltMamF2YS9sYW5nL1N0YWNrVHJhY2VFbGVtZW50O0wAFHN1cHByZXNzZWRFeGNlcHRpb25zdAAQ"
    "TGphdmEvdXRpbC9MaXN0O3hwcQB+AAh0AARib29tdXIAHltMamF2YS5sYW5nLlN0YWNrVHJhY2VFbGVtZW50OwJGKjw8/SI5AgAA"
    "eHAAAAABc3IAG2phdmEubGFuZy5TdGFja1RyYWNlRWxlbWVudGEJxZomNt2FAgAIQgAGZm9ybWF0SQAKbGluZU51bWJlckwAD2Ns"
    "YXNzTG9hZGVyTmFtZXEAfgAFTAAOZGVjbGFyaW5nQ2xhc3NxAH4ABUwACGZpbGVOYW1lcQB+AAVMAAptZXRob2ROYW1lcQB+AAVM"
    "AAptb2R1bGVOYW1lcQB+AAVMAA1tb2R1bGVWZXJzaW9ucQB+AAV4cAEAAAAIdAADYXBwdAADR2VudAAIR2VuLmphdmF0AARtYWlu"
    "cHBzcgAfamF2YS51dGlsLkNvbGxlY3Rpb25zJEVtcHR5TGlzdHq4F7Q8p57eAgAAeHB4"
)
"""An exception, whose cause is itself."""

JAVA_MAP = base64.b64decode(
    "rO0ABXNyABFqYXZhLnV0aWwuVHJlZU1hcAzB9j4tJWrmAwABTAAKY29tcGFyYXRvcnQAFkxqYXZhL3V0aWwvQ29tcGFyYXRvcjt4"
    "cHB3BAAAAAJ0AAR1c2VydAADYWRhdAAGdmlzaXRzc3IAEWphdmEubGFuZy5JbnRlZ2VyEuKgpPeBhzgCAAFJAAV2YWx1ZXhyABBq"
    "YXZhLmxhbmcuTnVtYmVyhqyVHQuU4IsCAAB4cAAAAAd4"
)
"""A TreeMap, which writes its entries with a method of its own."""

JAVA_INSTANT = base64.b64decode("rO0ABXNyAA1qYXZhLnRpbWUuU2VylV2EuhsiSLIMAAB4cHcNAgAAAABpJIEAAAAAAHg=")
"""An Instant, an Externalizable."""

PHP_VALUE = base64.b64decode(
    "YTo3OntzOjQ6InVzZXIiO2E6Mjp7czo0OiJuYW1lIjtzOjQ6Ilpvw6siO3M6NToicm9sZXMiO2E6MTp7aTowO3M6NToiYWRtaW4i"
    "O319czo0OiJjYXJ0IjtPOjQ6IkNhcnQiOjQ6e3M6ODoiAENhcnQAaWQiO2k6NztzOjg6IgAqAGl0ZW1zIjthOjI6e2k6MDtzOjM6"
    "Im11ZyI7aToxO2Q6Mi41O31zOjQ6Im5vdGUiO047czo0OiJvcGVuIjtiOjE7fXM6NDoic3VpdCI7RToxMToiU3VpdDpIZWFydHMi"
    "O3M6NDoibG9vcCI7Tzo4OiJzdGRDbGFzcyI6MTp7czo0OiJzZWxmIjtyOjE0O31zOjI6ImFvIjtPOjExOiJBcnJheU9iamVjdCI6"
    "NDp7aTowO2k6MDtpOjE7YToxOntpOjA7aToxO31pOjI7YTowOnt9aTozO047fXM6MzoiaW5mIjtkOklORjtzOjU6ImZsb2F0Ijtk"
    "OjAuMTt9"
)
"""An array with nested arrays, objects, an enum, a reference and floats."""

PHP_SESSION = base64.b64decode(
    "dXNlcnxhOjI6e3M6MjoiaWQiO2k6MTAwMTtzOjQ6Im5hbWUiO3M6MzoiYWRhIjt9dmlzaXRzfGk6MztjYXJ0fE86NDoiQ2FydCI6"
    "MTp7czo4OiIAQ2FydABpZCI7aTo3O30="
)
"""The session handler's own format."""
