"""The sports that the demo set knows, each by its own equipment."""

from __future__ import annotations

import math

from sports_ray.data.demo_scenes import BLACK, WHITE, Pen, ball, crowd, net, player


def basketball(pen: Pen) -> None:
    crowd(pen, pen.any(0.1, 0.3))
    x, y, w = pen.any(0.25, 0.75), pen.any(0.05, 0.2), pen.any(0.2, 0.3)
    pen.line([(x, y), (x, 0.8)], pen.shade((90, 90, 96)), 0.03)
    pen.box(x - w, y - 0.1, x + w, y + 0.2, WHITE, pen.vivid(), 0.015)
    pen.box(x - w / 3, y + 0.03, x + w / 3, y + 0.17, None, (210, 60, 40), 0.012)
    pen.disc(x, y + 0.2, 0.1, None, (226, 84, 30), 0.02, flat=0.3)
    for k in range(-3, 4):
        pen.line([(x + k * 0.03, y + 0.21), (x + k * 0.018, y + 0.36)], WHITE, 0.006)
    bx, by = pen.any(0.15, 0.85), pen.any(0.4, 0.85)
    player(pen, bx + pen.any(-0.15, 0.15), 1.0, pen.any(0.5, 0.65), reach=(bx, by))
    ball(pen, bx, by, pen.any(0.08, 0.13), [pen.shade((224, 116, 40))], BLACK)


def swimming(pen: Pen) -> None:
    slant = pen.any(-0.15, 0.15)
    for k in range(pen.rng.randint(4, 6)):
        y = 0.02 + k * pen.any(0.19, 0.23)
        rope = pen.vivid()
        for step in range(-8, 34):
            x = step * 0.042
            pen.disc(x, y + slant * x, 0.017, rope if step % 4 < 2 else WHITE)
    for _ in range(pen.rng.randint(1, 3)):
        x, y, cap, skin = pen.any(0.15, 0.85), pen.any(0.1, 0.9), pen.vivid(), pen.shade((214, 164, 126))
        pen.line([(x, y), (x - 0.2, y - slant * 0.2)], skin, 0.06)
        pen.line([(x, y), (x + 0.06, y - 0.09), (x + 0.15, y - 0.01)], skin, 0.035)
        pen.disc(x + 0.04, y, 0.045, cap)
        for _ in range(14):
            pen.disc(x - 0.22 + pen.any(-0.07, 0.05), y + pen.any(-0.05, 0.05), pen.any(0.006, 0.017), WHITE)


def football(pen: Pen) -> None:
    crowd(pen, pen.any(0.12, 0.3))
    x, y, w = pen.any(-0.1, 0.3), pen.any(0.12, 0.25), pen.any(0.55, 0.8)
    high = w * 0.42
    net(pen, x, x + w, y, high, pen.shade((206, 210, 210)))
    pen.line([(x, y + high), (x, y), (x + w, y), (x + w, y + high)], WHITE, 0.025)
    pen.line([(-1, y + high), (2, y + high)], WHITE, 0.012)
    pen.line([(-1, 0.75), (2, 0.75 + pen.any(-0.1, 0.1))], WHITE, 0.012)
    bx, by, r = pen.any(0.15, 0.85), pen.any(0.65, 0.88), pen.any(0.07, 0.12)
    player(pen, bx - pen.any(0.16, 0.24), by + 0.1, pen.any(0.45, 0.6))
    pen.disc(bx, by, r, WHITE, BLACK, 0.006)
    turn = pen.any(0, 6)
    for k in range(6):
        far = r * 0.68 if k else 0.0
        pen.disc(bx + far * math.cos(turn + k * 1.257), by + far * math.sin(turn + k * 1.257), r * 0.27, BLACK)


def tennis(pen: Pen) -> None:
    crowd(pen, pen.any(0.05, 0.2))
    y = pen.any(0.3, 0.45)
    for x0, x1 in ((0.3, -0.1), (0.7, 1.1), (0.5, 0.5)):
        pen.line([(x0, y - 0.05), (x1, 1.3)], WHITE, 0.012)
    net(pen, -0.3, 1.3, y, pen.any(0.13, 0.18), pen.shade((36, 38, 40)))
    pen.line([(-0.3, y), (1.3, y)], WHITE, 0.025)
    x, y, r, turn = pen.any(0.3, 0.7), pen.any(0.55, 0.75), pen.any(0.12, 0.17), pen.any(-0.9, 0.9)
    frame = pen.vivid()
    pen.line([(x, y), (x + 2.4 * r * math.sin(turn), y + 2.4 * r * math.cos(turn))], frame, 0.035)
    for k in range(-3, 4):
        half = math.sqrt(1 - (k / 4) ** 2) * r
        pen.line([(x + k * r / 4, y - half), (x + k * r / 4, y + half)], WHITE, 0.005)
        pen.line([(x - half, y + k * r / 4), (x + half, y + k * r / 4)], WHITE, 0.005)
    pen.disc(x, y, r, None, frame, 0.025)
    bx, by = x + pen.rng.choice([-1, 1]) * pen.any(0.2, 0.3), y - pen.any(0.1, 0.25)
    pen.disc(bx, by, pen.any(0.03, 0.045), (208, 232, 50), WHITE, 0.005)


def volleyball(pen: Pen) -> None:
    crowd(pen, pen.any(0.05, 0.25))
    y = pen.any(0.2, 0.36)
    player(pen, pen.any(0.0, 0.4), 0.78, pen.any(0.45, 0.55))
    net(pen, -0.35, 1.35, y, pen.any(0.2, 0.26))
    pen.line([(-0.3, y + 0.25), (1.3, y + 0.25)], WHITE, 0.012)
    post = pen.rng.choice([-0.05, 0.05, 0.95, 1.05])
    pen.line([(post, y - 0.03), (post, 0.95)], pen.vivid(), 0.035)
    x, by = pen.any(0.2, 0.8), pen.any(0.05, 0.5)
    player(pen, x + pen.any(-0.12, 0.12), 1.1, pen.any(0.5, 0.6), reach=(x, by + 0.08))
    ball(pen, x, by, pen.any(0.08, 0.12), [(236, 204, 60), (44, 80, 170), WHITE], (60, 60, 70))


def water_polo(pen: Pen) -> None:
    x, y, w = pen.any(0.05, 0.35), pen.any(0.05, 0.25), pen.any(0.45, 0.6)
    net(pen, x, x + w, y, w * 0.4)
    pen.line([(x, y + w * 0.4), (x, y), (x + w, y), (x + w, y + w * 0.4)], (226, 60, 50), 0.03)
    team = pen.rng.choice([WHITE, (30, 50, 140), (190, 40, 40)])
    for _ in range(pen.rng.randint(2, 4)):
        px, py, r = pen.any(0.1, 0.9), pen.any(0.55, 0.9), pen.any(0.045, 0.065)
        pen.disc(px, py + r * 1.4, r * 1.9, (226, 240, 248), flat=0.35)
        pen.line([(px, py), (px + pen.any(-0.15, 0.15), py - pen.any(0.1, 0.2))], (214, 164, 126), 0.035)
        pen.disc(px, py, r, pen.shade((222, 176, 140)))
        pen.arc(px, py, r, 170, 370, team, r * 0.8)
    ball(pen, pen.any(0.2, 0.8), pen.any(0.35, 0.6), pen.any(0.06, 0.09), [(240, 206, 40)], (60, 60, 60))


def ice_hockey(pen: Pen) -> None:
    crowd(pen, pen.any(0.05, 0.2))
    y = pen.any(0.25, 0.4)
    pen.line([(-1, y), (2, y + pen.any(-0.1, 0.1))], (200, 40, 50), 0.03)
    pen.line([(-1, y + 0.4), (2, y + 0.4 + pen.any(-0.1, 0.1))], (44, 80, 180), 0.04)
    pen.disc(pen.any(0.2, 0.8), pen.any(0.6, 0.9), 0.2, None, (200, 40, 50), 0.014, flat=0.5)
    for _ in range(pen.rng.randint(1, 2)):
        x, foot, side = pen.any(0.25, 0.75), pen.any(0.75, 0.95), pen.rng.choice([-1, 1])
        hand, blade = (x + side * 0.1, foot - 0.27), (x + side * 0.28, foot + 0.02)
        player(pen, x, foot, pen.any(0.5, 0.6), reach=hand)
        pen.line([(x + side * 0.04, foot - 0.42), blade], pen.shade((70, 50, 36)), 0.022)
        pen.line([blade, (blade[0] + side * 0.11, blade[1])], BLACK, 0.035)
    pen.disc(pen.any(0.15, 0.85), pen.any(0.8, 0.95), 0.05, BLACK, (70, 70, 74), 0.006, flat=0.5)


def archery(pen: Pen) -> None:
    if pen.rng.random() < 0.6:
        crowd(pen, pen.any(0.1, 0.3))
    side = pen.rng.choice([-1, 1])
    x, y, r = 0.5 + side * pen.any(0.0, 0.25), pen.any(0.3, 0.6), pen.any(0.17, 0.3)
    px, foot, tall = x - side * pen.any(0.35, 0.55), pen.any(0.8, 1.0), pen.any(0.45, 0.65)
    hand = (px + side * 0.2 * tall, foot - 0.75 * tall)
    player(pen, px, foot, tall, reach=hand)
    pen.arc(
        hand[0] - side * 0.1,
        hand[1],
        0.17,
        -60 if side > 0 else 120,
        60 if side > 0 else 240,
        (110, 66, 30),
        0.02,
        flat=1.3,
    )
    for side in (-1, 1):
        pen.line([(x, y - r * 0.6), (x + side * r * 0.8, y + r * 1.9)], pen.shade((120, 86, 52)), 0.035)
    for k, colour in enumerate([WHITE, BLACK, (40, 130, 200), (210, 44, 44), (244, 210, 50)]):
        pen.disc(x, y, r * (1 - k / 5), colour)
    for _ in range(pen.rng.randint(1, 4)):
        ax, ay = x + pen.any(-0.6, 0.6) * r, y + pen.any(-0.6, 0.6) * r
        tail = (ax + pen.any(0.05, 0.14), ay - pen.any(0.02, 0.08))
        pen.line([(ax, ay), tail], (60, 50, 40), 0.011)
        pen.disc(*tail, 0.017, pen.vivid())


def surfing(pen: Pen) -> None:
    crest = pen.any(0.25, 0.45)
    lift = pen.any(2.0, 5.0)
    wave = [(x / 20, crest + 0.12 * math.sin(x / lift)) for x in range(-8, 29)]
    pen.poly([*wave, (1.4, 1.4), (-0.4, 1.4)], pen.shade((30, 110, 150)))
    for x, y in wave:
        for _ in range(4):
            pen.disc(
                x + pen.any(-0.03, 0.03),
                y + pen.any(-0.03, 0.06),
                pen.any(0.012, 0.035),
                pen.shade((238, 244, 246), 10),
            )
    x, y, turn, length = pen.any(0.3, 0.7), pen.any(0.65, 0.85), pen.any(-0.3, 0.3), pen.any(0.26, 0.34)
    player(pen, x, y, pen.any(0.4, 0.5))
    dx, dy = length * math.cos(turn), length * math.sin(turn)
    board, nx, ny = pen.vivid(), -0.05 * math.sin(turn), 0.05 * math.cos(turn)
    pen.poly(
        [
            (x - dx, y - dy),
            (x - dx / 2 + nx, y - dy / 2 + ny),
            (x + dx / 2 + nx, y + dy / 2 + ny),
            (x + dx, y + dy),
            (x + dx / 2 - nx, y + dy / 2 - ny),
            (x - dx / 2 - nx, y - dy / 2 - ny),
        ],
        board,
    )
    pen.line([(x - dx, y - dy), (x + dx, y + dy)], WHITE, 0.01)


def table_tennis(pen: Pen) -> None:
    crowd(pen, pen.any(0.1, 0.25))
    y, far, near = pen.any(0.35, 0.45), pen.any(0.22, 0.3), pen.any(0.5, 0.65)
    table = pen.shade(pen.rng.choice([(28, 74, 130), (26, 90, 66)]))
    corners = [(0.5 - far, y), (0.5 + far, y), (0.5 + near, 0.85), (0.5 - near, 0.85)]
    player(pen, pen.any(0.35, 0.65), y + 0.12, 0.42)
    pen.poly(corners, table)
    pen.line([*corners, corners[0]], WHITE, 0.016)
    pen.line([(0.5, y), (0.5, 0.85)], WHITE, 0.008)
    net(pen, 0.5 - near * 0.85, 0.5 + near * 0.85, y + 0.12, 0.07)
    x, py, r, turn = pen.any(0.25, 0.75), pen.any(0.68, 0.85), pen.any(0.09, 0.13), pen.any(-1, 1)
    pen.line([(x, py), (x + 2 * r * math.sin(turn), py + 2 * r * math.cos(turn))], (190, 140, 84), 0.045)
    pen.disc(x, py, r, pen.rng.choice([(206, 34, 40), (206, 34, 40), BLACK]), (60, 30, 30))
    pen.disc(x + pen.any(-0.25, 0.25), py - pen.any(0.15, 0.25), 0.026, WHITE, (180, 180, 180), 0.004)


def bowling(pen: Pen) -> None:
    pen.box(-1, -1, 2, pen.any(0.05, 0.15), pen.shade((50, 44, 60)))
    for side in (-1, 1):
        pen.poly(
            [(0.5 + side * 0.3, 0.0), (0.5 + side * 0.4, 0.0), (0.5 + side * 0.95, 1.3), (0.5 + side * 0.65, 1.3)],
            (56, 50, 52),
        )
    x, y, high = pen.any(0.42, 0.58), pen.any(0.12, 0.25), pen.any(0.2, 0.27)
    for row in range(3, -1, -1):
        for k in range(row + 1):
            px, py = x + (k - row / 2) * 0.11, y + (3 - row) * 0.05
            pen.disc(px, py + high * 0.7, high * 0.19, WHITE, (180, 176, 170), 0.004, flat=1.6)
            pen.disc(px, py + high * 0.2, high * 0.12, WHITE, (180, 176, 170), 0.004)
            pen.line(
                [(px - high * 0.11, py + high * 0.36), (px + high * 0.11, py + high * 0.36)], (206, 40, 40), high * 0.07
            )
    bx, by, r = pen.any(0.25, 0.75), pen.any(0.68, 0.85), pen.any(0.1, 0.15)
    pen.disc(bx, by, r, pen.vivid(), BLACK)
    for dx, dy in ((0, -0.45), (0.3, -0.35), (0.12, -0.1)):
        pen.disc(bx + dx * r, by + dy * r, r * 0.13, BLACK)


def golf(pen: Pen) -> None:
    crowd(pen, pen.any(0.15, 0.35))
    x, y = pen.any(0.3, 0.7), pen.any(0.55, 0.75)
    pen.disc(x, y, pen.any(0.3, 0.5), pen.shade((132, 186, 92)), flat=0.35)
    pen.disc(pen.any(0.05, 0.95), pen.any(0.75, 0.95), 0.14, pen.shade((226, 206, 158)), flat=0.45)
    top = y - pen.any(0.4, 0.5)
    pen.disc(x, y, 0.03, BLACK, flat=0.5)
    pen.line([(x, y), (x, top)], WHITE, 0.016)
    side = pen.rng.choice([-1, 1])
    pen.poly(
        [(x, top), (x + side * 0.2, top + 0.065), (x, top + 0.13)], pen.rng.choice([(214, 40, 40), (240, 204, 50)])
    )
    px = x - side * pen.any(0.25, 0.35)
    player(pen, px, 0.92, 0.45, reach=(px + side * 0.08, 0.72))
    pen.line([(px + side * 0.08, 0.72), (px + side * 0.2, 0.93)], (190, 190, 196), 0.014)
    pen.disc(px + side * 0.26, 0.93, 0.024, WHITE)


def skiing(pen: Pen) -> None:
    slope, lie = pen.any(0.1, 0.35), pen.any(0.2, 0.35)
    pen.poly(
        [(-0.4, -0.4), (1.4, -0.4), (1.4, lie + slope * 1.4), (-0.4, lie - slope * 0.4)], pen.shade((126, 176, 222))
    )
    for _ in range(pen.rng.randint(3, 7)):
        x, tall = pen.any(-0.1, 1.1), pen.any(0.12, 0.22)
        base = lie + slope * x + 0.03
        pen.poly([(x - tall * 0.35, base), (x + tall * 0.35, base), (x, base - tall)], pen.shade((34, 78, 50)))
    for _ in range(2):
        gx, gy, colour = pen.any(0.05, 0.95), pen.any(0.5, 0.8), pen.rng.choice([(210, 40, 40), (40, 70, 190)])
        pen.line([(gx, gy), (gx, gy - 0.2)], colour, 0.014)
        pen.box(gx, gy - 0.2, gx + 0.1, gy - 0.12, colour)
    x, y = pen.any(0.3, 0.7), pen.any(0.7, 0.85)
    player(pen, x, y, pen.any(0.38, 0.48))
    for side in (-1, 1):
        pen.line(
            [(x - 0.2, y - 0.2 * slope + side * 0.025), (x + 0.24, y + 0.24 * slope + side * 0.025)], pen.vivid(), 0.022
        )
        pen.line([(x + side * 0.12, y - 0.2), (x + side * 0.2, y + 0.04)], BLACK, 0.012)


def billiards(pen: Pen) -> None:
    cloth, rim = pen.shade(pen.rng.choice([(24, 120, 70), (30, 90, 150)])), pen.any(0.06, 0.1)
    pen.box(-0.05, 0.02, 1.05, 0.98, cloth, pen.shade((104, 62, 34)), rim)
    for x in (0.02, 0.5, 0.98):
        for y in (0.08, 0.92):
            pen.disc(x, y, 0.055, BLACK)
    for _ in range(pen.rng.randint(6, 11)):
        x, y, r, colour = pen.any(0.12, 0.88), pen.any(0.18, 0.82), 0.05, pen.vivid()
        pen.disc(x + 0.012, y + 0.014, r, pen.shade((16, 50, 34), 6))
        pen.disc(x, y, r, colour)
        pen.disc(x - 0.014, y - 0.016, r * 0.35, WHITE)
    x, y, turn = pen.any(0.25, 0.75), pen.any(0.3, 0.7), pen.any(0, 6.28)
    pen.line([(x, y), (x + 0.9 * math.cos(turn), y + 0.9 * math.sin(turn))], (222, 186, 120), 0.022)
    pen.disc(x - 0.07 * math.cos(turn), y - 0.07 * math.sin(turn), 0.05, WHITE, (200, 200, 200), 0.005)


def boxing(pen: Pen) -> None:
    crowd(pen, pen.any(0.25, 0.45))
    shift = pen.any(-0.08, 0.08)
    for k, colour in enumerate([(206, 44, 44), WHITE, (44, 70, 180)]):
        y = 0.22 + shift + k * 0.13
        pen.line([(-0.4, y), (1.4, y + shift)], colour, 0.026)
    middle = pen.any(0.4, 0.6)
    for side, glove in ((-1, (206, 36, 40)), (1, pen.rng.choice([(36, 60, 180), (30, 30, 34)]))):
        x, foot, tall = middle + side * pen.any(0.2, 0.27), pen.any(0.9, 1.0), pen.any(0.62, 0.75)
        player(pen, x, foot, tall, reach=(x - side * 0.12, foot - tall * 0.8))
        pen.disc(x - side * 0.14, foot - tall * 0.8, 0.065, glove, BLACK, 0.005)
        pen.disc(x - side * 0.1, foot - tall * 0.62, 0.065, glove, BLACK, 0.005)


def cricket(pen: Pen) -> None:
    crowd(pen, pen.any(0.1, 0.25))
    pen.poly([(0.38, 0.2), (0.62, 0.2), (0.95, 1.4), (0.05, 1.4)], pen.shade((206, 180, 128)))
    x, y, high = pen.any(0.3, 0.7), pen.any(0.6, 0.75), pen.any(0.26, 0.34)
    for k in (-1, 0, 1):
        pen.line([(x + k * 0.055, y), (x + k * 0.055, y - high)], (236, 206, 140), 0.026)
    pen.line([(x - 0.08, y - high), (x + 0.08, y - high)], (200, 160, 96), 0.022)
    side = pen.rng.choice([-1, 1])
    px, foot = x + side * pen.any(0.2, 0.28), pen.any(0.88, 1.0)
    player(pen, px, foot, pen.any(0.5, 0.6), shirt=WHITE, reach=(px - side * 0.08, foot - 0.3))
    pen.line([(px - side * 0.08, foot - 0.3), (px - side * 0.15, foot - 0.02)], pen.shade((222, 188, 130)), 0.055)
    pen.disc(pen.any(0.15, 0.85), pen.any(0.75, 0.95), pen.any(0.03, 0.045), (176, 30, 36), WHITE, 0.005)
