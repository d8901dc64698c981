"""./dev simulate"""
import sys
import time

from .life import Life


def main():
    first, count = int(sys.argv[1]), int(sys.argv[2])
    began, failed = time.process_time(), []
    for seed in range(first, first + count):
        life = Life(seed)
        if not life.run():
            failed.append(seed)
            print(seed, life.broken)
            if count == 1:
                for line in life.history:
                    print(f"{line[0]:8.3f} {line[1]:8} {line[2]}")
                import traceback
                if life.exception:
                    traceback.print_exception(life.exception)
        elif count == 1:
            print(life.counts, life.passed_by, len(life.history))
    print(f"{(time.process_time() - began) / count * 1000:.1f} ms a life, {len(failed)} failed")


main()
